models_path = ""
"""Set by the test."""
