"""The command line: ``periflow-ray`` and, for PeriFlow's users, ``pf``. Data on stdout, talk on stderr."""
