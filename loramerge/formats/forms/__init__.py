"""Reparameterised forms: what a module stores that is no plain pair, made into one."""
