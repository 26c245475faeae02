"""Experiment files of AMD's Primus, read into this project's. Imports no torch."""
