-- A run that could not begin, because the runtime it would use fails at present, is put back for a while.
set local search_path = router;

alter table runs add column put_back_s double precision not null default 0;   -- how long it was put back for, in all

-- Puts a run back: answers for how long (seconds), at least p_delay and growing up to p_delay_max; null if it has been
-- put back for p_wait_max then. Written by the holder of the token, whose finish_2 follows.
create function put_back_1(t text, p_run text, p_token bigint, p_delay double precision, p_delay_max double precision,
  p_wait_max double precision) returns double precision language plpgsql as $$
declare waited double precision; delay double precision;
begin
  perform set_config('app.tenant_id', t, true);
  select x.put_back_s into waited from runs x where x.tenant_id = t and x.run_id = p_run and x.token = p_token and x.state = 'running';
  delay := greatest(p_delay, least(waited / 2, p_delay_max));
  if waited is null or waited + delay > p_wait_max then return null; end if;
  update runs x set put_back_s = waited + delay where x.tenant_id = t and x.run_id = p_run;
  return delay;
end $$;
