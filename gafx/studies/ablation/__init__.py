"""`gafx ablate`: a table file -> runs -> a table, as Markdown, CSV and a page.

`spec` reads the file, `plan` turns its rows into runs, `drive` trains and evaluates what is not finished, `collect`
reads the finished runs back and compares them, `write` writes the table. Training and evaluation are processes of their
own, so that a row that fails or dies takes no other with it.
"""
