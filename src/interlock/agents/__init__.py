"""Ways to run an agent."""

from interlock.agents.process import ProcessAgent as ProcessAgent
from interlock.agents.python import FunctionAgent as FunctionAgent
from interlock.agents.python import agent_factory as agent_factory
