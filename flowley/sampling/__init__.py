"""From noise to sound: solvers, guidance, windows and the generator."""
