"""The registry: owns definitions, compiles them to immutable plans, knows the live runners."""
