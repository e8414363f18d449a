"""Model cards and licences, as they lie beside an adapter."""
