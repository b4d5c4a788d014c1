"""One test for each defect of the original server that must not come back."""
