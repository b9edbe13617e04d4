"""The verification of one account: re-derives what it has from its rows, and says what does not add up.

Pure, and in little memory: `account.Verification` is fed rows in order and keeps sums, the account's grants and limits,
and what it found, however many entries there are. Rows are compared as they are: what is due and has not happened yet
is nothing wrong.
"""
