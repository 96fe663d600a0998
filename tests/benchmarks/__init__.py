"""Measurements against peers on real data, each run by hand: pytest collects none of them."""
