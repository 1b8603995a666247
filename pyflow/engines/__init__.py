"""Engines: what runs a network. Each backend is a file that opens an artefact as a denoiser of the C++ loop."""
