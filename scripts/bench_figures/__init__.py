"""Figures of speed: each is measured together with its baseline, in one run on one machine.

A figure is a function that returns rows; ``registry`` names them all. Programs that run as children of a figure are
in ``measured/``.
"""
