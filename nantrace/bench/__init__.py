"""What watching costs, measured: `nantrace bench`.

`plan` and `results` are plain data, and `tables` turns results into rows; these import no torch. `measuring` does what
a plan says. The programs that are measured stand in `programs`, and know nothing of nantrace.
"""
