"""The wire format: bytes in, values out, and back. No sockets, no clocks, no files.

Every layout is a construct schema and every attribute a row of a table; `layout` derives the fast readers from them.
"""
