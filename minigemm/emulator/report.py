from dataclasses import dataclass, field
@dataclass
class Hazard: kind:str; message:str; location:object; ptx_line:int; address:int; parties:tuple; fix:str; count:int=1
@dataclass
class Event: step:int; kind:str; agent:str; detail:str; location:object=None
class Counters(dict):
    def __init__(s,**k): super().__init__(**k)
@dataclass
class Report: kernel:str; grid:tuple; block:tuple; schedule:object; hazards:list; counters:dict; lines:object; events:list; seconds:float; translate_seconds:float; origin:str
