"""What the methods that look at single entries share: rules, spaces, limits and chance."""
