"""Peers that cannot be installed as packages, written from the expression their authors publish."""
