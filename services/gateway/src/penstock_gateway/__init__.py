"""The gateway: HTTP in front of the bus. It is stateless and owns no database."""
