"""What the commands on a journal do, and how it reads; options and exit codes are the command line's."""
