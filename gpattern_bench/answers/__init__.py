"""Answers about one's own cells: what is localised where, and what differs between conditions.

Data arrive as a folder of calls; tables for people leave.
"""
