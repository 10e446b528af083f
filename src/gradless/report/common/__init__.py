"""What all report pages share: numbers, tables, pictures and the page itself."""
