-- No transaction of a service outlives its process's interest in it, and a mend of what a later attempt is given.
set local search_path = router;

-- A process that is stopped in the middle of a transaction keeps its locks, the sweeper's among them, for as long as it
-- is stopped. Transactions of a service take milliseconds, and each of its statements is given up after 10 s: what lasts
-- longer belongs to nobody any more. Long ones also keep rows that were replaced from being removed, which makes busy
-- logs slow.
do $$ declare r text; begin
  foreach r in array array['retinue_router', 'retinue_sweep', 'retinue_courier'] loop
    execute format('alter role %I set idle_in_transaction_session_timeout = ''5s''', r);
    execute format('alter role %I set transaction_timeout = ''15s''', r);
  end loop;
end $$;

-- Mended: an attempt that takes over from one that was lost after an approval is told the answers, too. Whatever was
-- parked has a checkpoint, so that nothing is asked for a run that begins.
create or replace function claim_1(t text, p_log text, p_holder text, ttl interval, p_attempts int) returns held_1 language plpgsql as $$
declare h held_1;
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_log and x.due_time <= clock_timestamp() for no key update;
  if not found then return held_by_1(t, p_log, p_holder); end if;
  h := take_1(t, p_log, p_holder, ttl, p_attempts);               -- a later statement: fresh snapshot, taken under the lock
  if h.checkpoint is not null and h.approvals is null then
    select jsonb_agg(jsonb_build_object('approval_id', a.approval_id, 'call_id', a.call_id, 'decision', a.state) order by a.approval_id) into h.approvals
      from approvals a where a.tenant_id = t and a.run_id = h.run_id;
  end if;
  return h;
end $$;
