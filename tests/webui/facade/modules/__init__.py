"""A thin stand-in for the web UI's package `modules`: what the extension touches, and the behaviours that bite.

Written from what the hosts do, not from their code.  It proves the extension against that reading; test_a1111.py and
test_forge.py prove it against the hosts.
"""
