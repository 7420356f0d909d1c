"""The engine room: stages, ledger, store, plan, runs and fan-out. Knows no particular stage."""
