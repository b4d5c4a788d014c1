"""One test for each known defect that must not come back."""
