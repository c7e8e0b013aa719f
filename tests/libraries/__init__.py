"""Known numerical failures, brought about in the code of released packages that nobody here wrote.

Every expectation was written from the library's source before nantrace was asked. The packages are the extra
`libraries`, their versions `constraints-libraries.txt`; what is not installed is skipped.
"""
