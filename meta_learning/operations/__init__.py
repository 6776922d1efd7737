"""Operations of a network whose derivatives of both orders are written by hand, since torch's take several times as
long.
"""
