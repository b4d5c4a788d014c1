"""Sites at host names: rules, names and pages. Pure."""
