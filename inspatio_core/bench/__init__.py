"""Measurements that anyone can repeat: ``inspatio bench``."""
