"""What every step is: its base, registration of names, returned values, decorated functions, exports."""
