-- Replaces a breaker if it is still what was read, and answers what it is otherwise.
-- KEYS[1] = breaker; ARGV = what was read, what it becomes (each "" for nothing), milliseconds to keep it
local found = redis.call('GET', KEYS[1]) or ''
if found ~= ARGV[1] then return {0, found} end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return {1, found}
