"""The data mixture of a pretraining run as a pure function of position."""

__version__ = "0.1.0"
