"""Ways to run an agent."""

from interlock.agents.chat import ChatAgent as ChatAgent
from interlock.agents.chat_tools import Tool as Tool
from interlock.agents.chat_tools import tool as tool
from interlock.agents.command import CommandAgent as CommandAgent
from interlock.agents.process import ProcessAgent as ProcessAgent
from interlock.agents.python import FunctionAgent as FunctionAgent
from interlock.agents.python import agent as agent
from interlock.agents.python import agent_factory as agent_factory
from interlock.agents.python import session_agent as session_agent
