"""Hyper-Merge in Automatic1111 and Forge.

Loaded once per process under this name by scripts/hyper_merge.py, and kept when the page is reloaded: the live blend's
state is here.  Nothing of the host is imported before it is used; settings.py knows no host at all.
"""
