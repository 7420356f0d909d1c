"""Training stages under Ray Train: what runs in the workers, and what starts them."""
