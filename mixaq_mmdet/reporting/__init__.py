"""What every result is made of: whole files, Markdown tables, figures, the machine it was made on."""
