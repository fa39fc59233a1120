"""What finished runs found out, as tables, sentences and one HTML page; nothing is trained or measured here."""
