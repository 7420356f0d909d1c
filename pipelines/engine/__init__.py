"""Execution engine: stages, ledger, store, plan, runner and fan-out. Knows no particular stage."""
