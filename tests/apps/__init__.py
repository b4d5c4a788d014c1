"""Front ends as users build them, hosted as sites and opened in Chromium.

`full_*.py` have the front ends that take long to build; `.ci/full` runs them.
"""
