"""The command line: parse, call, print. No logic; heavy modules are imported inside the commands."""
