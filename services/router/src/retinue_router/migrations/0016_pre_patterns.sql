-- Whoever is asked hears what "allow_always" would allow.
set local search_path = router;

-- Mended: the event says the pattern, where there is one, and the approval is written once. It is park_1 no more, which
-- knows of no pattern.
create or replace function park_2(t text, p_log text, p_token bigint, p_run text, ev jsonb, p_checkpoint bytea, p_decision jsonb, p_approval text,
  p_n int, p_call text, p_tool text, p_summary text, p_expire interval, p_pattern text)
returns table (ok bool, events jsonb, ring bool) language plpgsql as $$
declare r runs; until timestamptz := clock_timestamp() + p_expire; mailed bool; said jsonb;
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_log and x.token = p_token and x.holder is not null for no key update;
  if not found then return query select false, '[]'::jsonb, false; return; end if;
  update runs x set state = 'waiting', checkpoint = p_checkpoint, decision = p_decision, runtime = p_decision ->> 'runtime'
    where x.tenant_id = t and x.run_id = p_run returning * into r;
  insert into approvals (tenant_id, approval_id, log_id, run_id, contact, call_id, tool, summary, expire_time, pattern)
    values (t, p_approval, p_log, p_run, r.contact, p_call, p_tool, p_summary, until, p_pattern);
  said := jsonb_build_object('approval_id', p_approval, 'call_id', p_call, 'tool', p_tool, 'summary', p_summary, 'expire_time', until);
  if p_pattern <> '' then said := said || jsonb_build_object('pattern', p_pattern); end if;
  ev := ev || jsonb_build_object('n', p_n, 'type', 'approval.requested', 'run_id', p_run, 'session_id', r.session_id, 'data', said);
  -- A wish to stop that came while it ran is honoured now: nobody would look at it for as long as the approval waits.
  if r.cancel is not null then perform cancel_idle_1(t, r, r.cancel, coalesce(r.cancel_by, '')); end if;
  mailed := exists (select from mail x where x.tenant_id = t and x.log_id = p_log);
  update logs x set holder = null, due_time = case when mailed then clock_timestamp() else until end,
    runtime = case when x.session_id = r.session_id then p_decision ->> 'runtime' else x.runtime end,
    runtime_time = case when x.session_id = r.session_id then clock_timestamp() else x.runtime_time end
    where x.tenant_id = t and x.log_id = p_log;
  return query select true, write_events_1(t, p_log, p_token, ev), mailed;
end $$;
