"""What tests share: no fixture lives here, only plain functions and classes."""
