"""A whole installation in one thread on virtual time: one seed decides everything."""
