"""What is said of a study: numbers, tables, figures, pages."""
