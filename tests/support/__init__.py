"""Helpers of the tests, without any test."""
