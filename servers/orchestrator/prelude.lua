-- What every script of the orchestrator begins with.
--
-- orchestrator:lease      'TOKEN NAME' of the leader; Redis's own clock ends it
-- orchestrator:fence      the newest fencing token that was given
-- orchestrator:paused     a hash while the loop is paused: reason
-- orchestrator:progress   what the leader does: token, step, next (Unix seconds)
-- orchestrator:cycles     stream of cycles as JSON
-- orchestrator:wishes     list of cycles that RunCycle asked for, as JSON; what it came to: orchestrator:ran:<id>
-- orchestrator:map        the cognitive map as JSON; orchestrator:learnt: what else went into it
-- orchestrator:repeat:<kind>:<key>  what a call with this idempotency key was, for 24 hours
local function fenced(token)
  local newest = redis.call('GET', 'orchestrator:fence') or '0'
  if tonumber(token) < tonumber(newest) then return { 'FENCED', newest } end
end
