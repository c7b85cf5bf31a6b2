# A Rails of one file, with what `rails new` would spread over a tree.
require "rails"
require "active_record/railtie"
require "action_controller/railtie"
require "walrust"

class App < Rails::Application
  config.root = ENV.fetch("APP_HOME")
  config.load_defaults 6.1
  config.eager_load = true
  config.secret_key_base = "x" * 30
  config.hosts.clear
  config.logger = Logger.new($stderr, level: :warn)
end

class T < ActiveRecord::Base
  self.table_name = "t"
end

class TController < ActionController::API
  def add
    T.create!(v: "x")
    render plain: "pid #{Process.pid}"
  end

  def status
    render json: T.connection.select_all("SELECT state, last_error FROM walrust_status")
  end
end

App.initialize!
App.routes.draw do
  post "/add", to: "t#add"
  get "/status", to: "t#status"
end
run App
