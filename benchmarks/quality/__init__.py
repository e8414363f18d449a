"""Which merge is good: small adapters trained here, merged by every method, measured on what they learned."""
