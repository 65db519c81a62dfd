"""A pool of agents: checkout, checkin, transaction."""

from interlock.pool.pool import AgentPool as AgentPool
from interlock.pool.readings import PoolStats as PoolStats
