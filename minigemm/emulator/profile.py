class Profile:
    def __init__(s,*a,**k): pass
    def take(s,*a): pass
    def finish(s,c,code): return c,()
