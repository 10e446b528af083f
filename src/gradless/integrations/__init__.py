"""gradless inside other libraries' training loops. Nothing here is imported before it is asked for."""
