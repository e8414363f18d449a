"""Strangers' regular expressions, matched without the power to hang."""
